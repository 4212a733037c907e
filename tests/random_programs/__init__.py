"""Random programs: workflows made from a seed, run and interrupted, against a reference interpreter.

``programs`` makes a program (a tree of stages) and says what it must do; ``building`` makes a
workflow of it; ``checking`` runs the workflow, interrupts it, resumes its snapshots, and lists
every deviation. ``python -m tests.random_programs --seeds 0-99`` runs some of them.
"""
