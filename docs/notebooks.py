"""The notebooks in ``examples``: as pages of the site (a hook of mkdocs), and executed with their outputs kept.

    python docs/notebooks.py

executes them and writes their outputs into their files; the extra ``test`` has what this needs.
"""

import re
import tempfile
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = ("first_steps", "error_analysis")  # in this order: the second reads the run of the first


def on_files(files, config):
    """Adds a page per notebook, with its outputs as they are in the file."""
    import nbconvert
    from mkdocs.structure.files import File

    for name in NAMES:
        path = EXAMPLES / f"{name}.ipynb"
        resources = {"output_files_dir": f"{name}_files"}
        text, resources = nbconvert.MarkdownExporter().from_filename(str(path), resources)
        heading, _, rest = text.strip().partition("\n")
        text = f"{heading}\n\nThis page is the notebook [{name}.ipynb]({name}.ipynb), executed on a CPU.\n{rest}"
        files.append(File.generated(config, f"notebooks/{name}.md", content=text))
        files.append(File.generated(config, f"notebooks/{name}.ipynb", content=path.read_bytes()))
        for picture, content in resources["outputs"].items():
            files.append(File.generated(config, f"notebooks/{picture}", content=content))
    return files


def execute(folder):
    """Executes the notebooks in a folder.

    Args:
        folder: the current folder of the cells.

    Returns:
        The executed notebooks by name. Of each output one form is kept, a picture or plain text; messages on stderr,
        which name paths of the machine, are left out.
    """
    import nbformat
    from nbclient import NotebookClient

    executed = {}
    for name in NAMES:
        notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
        resources = {"metadata": {"path": str(folder)}}
        NotebookClient(notebook, timeout=600, record_timing=False, resources=resources).execute()
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = [_lean(output) for output in cell.outputs if output.get("name") != "stderr"]
        executed[name] = notebook
    return executed


def _lean(output):
    if "data" in output:
        pictures = {kind: content for kind, content in output.data.items() if kind.startswith("image/")}
        kind = min(pictures, key=lambda kind: len(pictures[kind])) if pictures else "text/plain"
        output.data = {kind: re.sub(r"\x1b\[[\d;]*m", "", output.data[kind])}
    return output


if __name__ == "__main__":
    import nbformat

    with tempfile.TemporaryDirectory() as work:
        for name, notebook in execute(work).items():
            nbformat.write(notebook, EXAMPLES / f"{name}.ipynb")
