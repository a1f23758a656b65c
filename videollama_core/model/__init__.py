"""The network: typed config and its PyTorch modules. May import `protocol`; independent of files and engines."""
