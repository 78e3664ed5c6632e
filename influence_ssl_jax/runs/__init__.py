"""Run the steps of the work in a folder: pretrain, import, score, audit and compare; every run can be resumed."""
