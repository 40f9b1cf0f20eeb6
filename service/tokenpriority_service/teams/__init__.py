"""Teams: their keys, limits, quotas and usage.

caller.py       who calls, with what scopes and limits
keys.py         the table of keys
limits.py       the table of teams' limits
directory.py    from an Authorization header to a caller
quota.py        what a team may have computed
charge.py       what a team was charged
charging.py     the transactions that charge and give back
books.py        what this replica holds, and has yet to give back
allowance.py    the table of what is left of tokens_per_minute
in_flight.py    the table of tokens in flight
usage.py        what teams used, by model and hour
dialect.py      where SQLite and PostgreSQL differ
background.py   work that goes on beside requests
commands.py     what the commands share
keys_command.py, teams_command.py
"""
