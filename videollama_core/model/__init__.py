"""The network: typed config and its PyTorch modules. May import `protocol`; knows neither files nor engines."""
