"""The system attacks itself, as Jepsen would: load, faults, the complete history, and then the accounts.

    ./dev faults --seed 7 --minutes 20

`drive` makes the load and writes the history, `nemesis` breaks things, `checks` compares history and stores.
"""
