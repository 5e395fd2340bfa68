"""The road an object travels, one module per step.

    scan  ->  plan  ->  pull, check, seal  ->  push, check  ->  release
    seen      pulling   staged                 delivered

Each step takes work in one state and leaves it in the next.  Steps never call each other; the ledger
is the only thing they share.
"""
