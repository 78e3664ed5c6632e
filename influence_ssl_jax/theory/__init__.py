"""State the theory of Influence-SSL: closed forms, and statements with their verdicts and checks."""
