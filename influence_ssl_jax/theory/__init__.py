"""State the theory of Influence-SSL: closed forms, statements, verdicts and checks."""
