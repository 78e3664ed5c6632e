"""What can happen to a run: one file a kind of fault, over one rig."""
