"""Experiments that are computed once: `make results NAME=…` stores the table, and a page reads it.

A module here is an experiment. It has

- ``SETTINGS``: a list of small dictionaries, the arguments of its runs;
- ``SEEDS``: at least five numbers. Each setting is run with each seed;
- ``run(seed, **setting)``: one run. It returns its rows: dictionaries of numbers, words and, where a page
  needs them, arrays. Python's, NumPy's and PyTorch's random numbers begin from the seed; on a processor
  PyTorch has one thread.

A table is refused when the code of its runs has changed, so reach no more than is needed: the digits by
`course_lib.training.data.digits` and not by `load_dataset`, which knows all datasets.

A run has a process of its own, so nothing that one leaves behind is there for the next. See
`course_lib.book.results`.
"""
