"""`tokenpriority verify`: whether engines score a model as transformers does, offline.

sequences.py    what is scored: fixed token ids of mixed lengths
plain.py        transformers' own forward, in one dtype: the truth and the yardstick
hosted.py       an engine, loaded, timed and closed
apart.py        each of them in a process of its own, one after the other
comparison.py   errors, what is allowed, verdicts
report.py       the report, as a table and as JSON
command.py      the options
"""
