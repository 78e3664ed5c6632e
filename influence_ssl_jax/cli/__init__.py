"""The sub-commands, one file each; the command line imports the one that was asked for."""
