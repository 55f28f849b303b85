"""The benchmark harness: from a command line to records and tables. The path of a cell:

cli                the verbs
config.compose     conf/ and overrides become the configurations of cells; Hydra ends here
cell.resolve       a configuration becomes a ResolvedCell: parts, options, model
cell.keys          the keys of the cell and of its stages
cell.plan          which of its stages are in the store already
run.process        one process per cell
run.stage          the stages of a cell: the quantization (quant), then each suite's `run`
run.recording      figures become a record, which records.store stores under its key
report.assemble    records become tables, with the columns of SUITE.table in suites/NAME.py
"""
