"""What helps against each fault; `repair` says in which order, and verifies afterwards.

A cure looks again at what it is about, decides by what was signed, and either does it, says that there is nothing to do, or refuses and says what the operator
must do. In a dry run it does everything but write.
"""
