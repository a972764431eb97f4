
"use strict";
const $ = id => document.getElementById(id);
const setup = JSON.parse($("setup").textContent);
const LONGEST = 1600;  // side of the overlay in pixels; larger ones take long to draw
const photos = [], hidden = new Set([0]);  // the background is not drawn, as in the overlays of vocseg predict
let current = null, cursor = null, queue = Promise.resolve();

// ---- uploads: one after another, in the order in which they were given

function add(files) {
  $("problems").replaceChildren();
  for (const file of files) {
    const photo = {file, name: file.name, item: stripItem(file.name)};
    $("strip").append(photo.item);
    queue = queue.then(() => segment(photo)).catch(error => refuse(photo, error));
  }
  $("strip").hidden = !$("strip").children.length;
}

async function segment(photo) {
  if (photo.file.size > setup.megabytes * 1e6) throw Error(`The file has more than ${setup.megabytes} MB.`);
  let response;
  try {
    const headers = {"Content-Type": "application/octet-stream"};
    response = await fetch("segment", {method: "POST", headers, body: photo.file});
  } catch { throw Error("The demo does not answer. Does vocseg demo still run?"); }
  const answer = await response.json().catch(() => ({error: `The demo answered ${response.status}.`}));
  if (!response.ok) throw Error(answer.error);
  const {width, height, seconds, probabilities} = answer;
  const deflated = new Blob([bytes(answer.labels)]).stream().pipeThrough(new DecompressionStream("deflate"));
  const labels = new Uint8Array(await new Response(deflated).arrayBuffer());
  const logs = new Uint16Array(bytes(probabilities.values).buffer);
  const url = URL.createObjectURL(new Blob([bytes(answer.photograph)], {type: "image/jpeg"}));
  const mask = URL.createObjectURL(new Blob([bytes(answer.mask)], {type: "image/png"}));
  const counts = new Uint32Array(256);
  for (const label of labels) counts[label]++;
  const shares = [...counts.entries()].filter(([, count]) => count).map(([label, count]) => [label, count / labels.length]);
  shares.sort((one, other) => other[1] - one[1]);
  delete photo.file;
  Object.assign(photo, {width, height, seconds, labels, url, mask, shares, input: answer.input_size});
  photo.probabilities = {...probabilities, values: logs};
  Object.assign(photo, shrunk(photo));
  photos.push(photo);
  const button = photo.item.firstChild, image = new Image();
  image.src = url;
  image.alt = "";
  button.firstChild.replaceChildren(image);
  button.disabled = false;
  button.addEventListener("click", () => select(photo));
  $("drop").classList.add("small");
  $("all").hidden = photos.length < 2;
  $("all").textContent = `All ${photos.length} masks`;
  if (!current) select(photo);
}

function refuse(photo, error) {
  photo.item.remove();
  $("strip").hidden = !$("strip").children.length;
  $("problems").append(element("p", "problem", `${photo.name}: ${error.message}`));
}

function bytes(base64) {
  const binary = atob(base64), found = new Uint8Array(binary.length);
  for (let at = 0; at < found.length; at++) found[at] = binary.charCodeAt(at);
  return found;
}

// ---- the overlay

// labels at the overlay's size, and where the contours are: inside of the regions, as vocseg.overlays draws them
function shrunk({labels, width, height}) {
  const scale = Math.min(1, LONGEST / Math.max(width, height));
  const columns = Math.max(1, Math.round(width * scale)), rows = Math.max(1, Math.round(height * scale));
  const small = new Uint8Array(columns * rows);
  for (let y = 0, at = 0; y < rows; y++) {
    const row = Math.floor((y + .5) * height / rows) * width;
    for (let x = 0; x < columns; x++, at++) small[at] = labels[row + Math.floor((x + .5) * width / columns)];
  }
  const reach = Math.max(1, Math.round(Math.min(columns, rows) / 200));
  const low = extreme(extreme(small, columns, rows, reach, 1, Math.min), columns, rows, reach, columns, Math.min);
  const high = extreme(extreme(small, columns, rows, reach, 1, Math.max), columns, rows, reach, columns, Math.max);
  return {small, columns, rows, contour: low.map((value, at) => value !== high[at])};
}

// the minimum or maximum of each pixel's neighbours along a row (step 1) or a column (step: the width)
function extreme(values, columns, rows, reach, step, pick) {
  const found = new Uint8Array(values.length);
  for (let y = 0, at = 0; y < rows; y++) for (let x = 0; x < columns; x++, at++) {
    const [place, length] = step === 1 ? [x, columns] : [y, rows];
    const first = Math.max(-reach, -place), last = Math.min(reach, length - 1 - place);
    let best = values[at];
    for (let offset = first; offset <= last; offset++) best = pick(best, values[at + offset * step]);
    found[at] = best;
  }
  return found;
}

function draw() {
  if (!current) return;
  const {small, columns, rows, contour} = current, canvas = $("overlay");
  const fill = Math.round($("opacity").value * 2.55), line = $("contours").checked ? 255 : fill;
  const colours = setup.classes.map(({colour}) => colour);
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d"), picture = context.createImageData(columns, rows), {data} = picture;
  for (let at = 0; at < small.length; at++) {
    const label = small[at];
    if (hidden.has(label)) continue;
    const [red, green, blue] = colours[label];
    data[4 * at] = red;
    data[4 * at + 1] = green;
    data[4 * at + 2] = blue;
    data[4 * at + 3] = contour[at] ? line : fill;
  }
  context.putImageData(picture, 0, 0);
  $("percent").value = `${$("opacity").value} %`;
}

// ---- what is shown of a photograph

function select(photo) {
  current = photo;
  cursor = null;
  for (const {item} of photos) item.firstChild.removeAttribute("aria-current");
  photo.item.firstChild.setAttribute("aria-current", "true");
  photo.item.scrollIntoView({block: "nearest", inline: "nearest"});
  $("work").hidden = false;
  $("work").style.setProperty("--ratio", photo.width / photo.height);
  $("photograph").src = photo.url;
  $("photograph").alt = photo.name;
  const summary = photo.shares.map(([label, share]) => `${setup.classes[label].name} ${percent(share)}`).join(", ");
  $("overlay").setAttribute("aria-label", `${photo.name}: ${summary}. The arrow keys read the classes of its pixels.`);
  const time = photo.seconds < 1 ? `${Math.round(1000 * photo.seconds)} ms` : `${photo.seconds.toFixed(1)} s`;
  const [high, wide] = photo.input, resized = high !== photo.height || wide !== photo.width;
  $("facts").textContent = `${photo.name} \u00b7 ${photo.width}\u00d7${photo.height} pixels`
    + (resized ? `, resized to ${wide}\u00d7${high} for the network` : "") + ` \u00b7 ${time}`;
  $("classes").replaceChildren(...photo.shares.map(([label, share]) => legendItem(label, share)));
  $("mask").href = photo.mask;
  $("mask").download = `${stem(photo)}.png`;
  read();
  draw();
}

function legendItem(label, share) {
  const item = element("li"), row = element("label"), box = element("input");
  box.type = "checkbox";
  box.checked = !hidden.has(label);
  box.autocomplete = "off";
  box.addEventListener("change", () => {
    box.checked ? hidden.delete(label) : hidden.add(label);
    draw();
  });
  row.append(box, swatch(label), element("span", "label", setup.classes[label].name));
  row.append(element("span", "share", percent(share)));
  item.append(row);
  return item;
}

function stripItem(name) {
  const item = element("li"), button = element("button"), thumbnail = element("span", "thumbnail");
  thumbnail.append(element("span", "spinner"));
  button.type = "button";
  button.disabled = true;
  button.title = name;
  button.append(thumbnail, element("span", "name", name));
  item.append(button);
  return item;
}

function swatch(label) {
  const box = element("span", "swatch"), {colour, maskColour} = setup.classes[label];
  box.style.background = `rgb(${maskColour})`;
  box.style.borderColor = `rgb(${colour})`;
  return box;
}

function element(tag, name = "", text = "") {
  const made = document.createElement(tag);
  made.className = name;
  made.textContent = text;
  return made;
}

function percent(share) {
  const hundredths = 100 * share;
  return hundredths >= 9.95 ? `${Math.round(hundredths)} %` : hundredths >= .05 ? `${hundredths.toFixed(1)} %` : "< 0.1 %";
}

function stem(photo) { return photo.name.replace(/\.[^.]*$/, "") || "photograph"; }

// ---- the pointer

// class probabilities at a pixel: interpolated as vocseg resizes logits (bilinearly, align_corners=False)
function probabilities({width, height, probabilities: {width: w, height: h, values}}, {x, y}) {
  const [left, right, across] = between(x, width, w), [top, bottom, down] = between(y, height, h);
  const scores = setup.classes.map((_, label) => {
    const value = (row, column) => values[(label * h + row) * w + column];
    const above = (1 - across) * value(top, left) + across * value(top, right);
    const below = (1 - across) * value(bottom, left) + across * value(bottom, right);
    return Math.exp(-((1 - down) * above + down * below) / setup.steps);
  });
  const sum = scores.reduce((total, score) => total + score);
  return scores.map(score => score / sum);
}

function between(place, full, size) {
  const at = Math.max((place + .5) * size / full - .5, 0), low = Math.min(Math.floor(at), size - 1);
  return [low, Math.min(low + 1, size - 1), at - low];
}

function read() {
  const box = $("readout"), isOn = cursor !== null;
  $("cross").hidden = $("tip").hidden = !isOn;
  $("at").textContent = isOn ? `At ${cursor.x}, ${cursor.y}` : "Under the pointer";
  if (!isOn) {
    box.replaceChildren(element("p", "", "Point at the photograph, or focus it and use the arrow keys."));
    return;
  }
  const shares = probabilities(current, cursor), label = current.labels[cursor.y * current.width + cursor.x];
  const order = [...shares.keys()].sort((one, other) => (other === label) - (one === label) || shares[other] - shares[one]);
  box.replaceChildren(...order.slice(0, 3).map(each => guess(each, shares[each])));
  const tip = $("tip");
  tip.textContent = `${setup.classes[label].name} ${percent(shares[label])}`;
  const across = (cursor.x + .5) / current.width, down = (cursor.y + .5) / current.height;
  const margin = 50 * tip.offsetWidth / $("frame").clientWidth;  // the tip stays inside of the frame
  for (const mark of [tip, $("cross")]) {
    mark.style.left = `${mark === tip ? Math.min(Math.max(100 * across, margin), 100 - margin) : 100 * across}%`;
    mark.style.top = `${100 * down}%`;
  }
  tip.classList.toggle("below", down * $("frame").clientHeight < 45);
}

function guess(label, share) {
  const row = element("div", "guess"), bar = element("div", "bar"), length = element("i");
  length.style.width = `${100 * share}%`;
  bar.append(length);
  row.append(swatch(label), element("span", "label", setup.classes[label].name), element("span", "", percent(share)), bar);
  return row;
}

function point(event) {
  if (!current) return;
  const {left, top, width, height} = $("overlay").getBoundingClientRect();
  const inside = (place, size) => Math.min(Math.max(Math.floor(place), 0), size - 1);
  cursor = {
    x: inside((event.clientX - left) / width * current.width, current.width),
    y: inside((event.clientY - top) / height * current.height, current.height),
  };
  read();
}

const MOVES = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
function move(event) {
  const direction = MOVES[event.key];
  if (event.key === "Escape") cursor = null;
  else if (direction) {
    const {width, height} = current, step = event.shiftKey ? 1 : Math.max(1, Math.round(Math.max(width, height) / 50));
    cursor ??= {x: width >> 1, y: height >> 1};
    cursor = {
      x: Math.min(Math.max(cursor.x + step * direction[0], 0), width - 1),
      y: Math.min(Math.max(cursor.y + step * direction[1], 0), height - 1),
    };
  } else return;
  event.preventDefault();
  read();
}

// ---- downloads

function save(url, name) {
  const link = element("a");
  link.href = url;
  link.download = name;
  link.click();
}

async function savePicture() {
  const photo = current, picture = element("canvas"), context = picture.getContext("2d");
  picture.width = photo.width;
  picture.height = photo.height;
  context.drawImage($("photograph"), 0, 0, photo.width, photo.height);
  context.drawImage($("overlay"), 0, 0, photo.width, photo.height);
  const url = URL.createObjectURL(await new Promise(done => picture.toBlob(done, "image/png")));
  save(url, `${stem(photo)}_overlay.png`);
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

async function saveAll() {
  for (const photo of photos) {
    save(photo.mask, `${stem(photo)}.png`);
    await new Promise(done => setTimeout(done, 150));  // browsers drop downloads that come at once
  }
}

// ---- events

$("files").addEventListener("change", event => {
  add([...event.target.files]);
  event.target.value = "";  // the same file may be chosen again
});
document.addEventListener("dragover", event => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", event => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
document.addEventListener("drop", event => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  add([...event.dataTransfer.files]);
});
document.addEventListener("paste", event => {
  if (event.clipboardData.files.length) add([...event.clipboardData.files]);
});
for (const type of ["pointerdown", "pointermove"]) $("overlay").addEventListener(type, point);
$("overlay").addEventListener("pointerleave", event => {
  if (event.pointerType !== "mouse") return;  // a finger that is lifted leaves its mark
  cursor = null;
  read();
});
$("overlay").addEventListener("keydown", move);
$("opacity").addEventListener("input", draw);
$("contours").addEventListener("change", draw);
$("picture").addEventListener("click", savePicture);
$("all").addEventListener("click", saveAll);
