"""The reproduced paper: its rows, its evaluation protocol, the records of its runs, and its tables."""
