"""The reproduced paper (UCSD CSE 251B, VOC-2007): its rows, its evaluation protocol, records of runs, and its tables.

Nothing else in vocseg imports this package, except the command line for ``vocseg paper ...``.
"""
