"""The benchmark harness: from a command line to records and tables. A cell's way through it:

cli                the verbs
config.compose     conf/ and overrides become the configurations of cells; Hydra ends here
cell.resolve       a configuration becomes a ResolvedCell: parts, options, model
cell.keys          the keys of the cell and of its stages
cell.plan          which of its stages the store has already
run.process        a process for every cell
run.stage          the stages of a cell: the quantization (quant), then each suite's `run`
run.recording      figures become a record, which records.store keeps under its key
report.assemble    records become tables; which columns, suites/NAME.py says in SUITE.table
"""
