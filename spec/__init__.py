"""The specification as data: clauses, struct layouts, the ambiguity ledger and the dialect differences."""
