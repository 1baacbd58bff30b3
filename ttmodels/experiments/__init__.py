"""The experiments of the papers, one readable file each: `python -m ttmodels.experiments NAME`."""
