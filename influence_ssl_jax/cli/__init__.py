"""Parse command lines, run what they ask for, and print what happens."""
