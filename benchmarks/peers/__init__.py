"""The other side: the same network in torch, and the libraries that it is given to."""
