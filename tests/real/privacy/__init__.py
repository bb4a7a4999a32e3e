"""What a real expert's mean, gate and loss tell of the rows behind them; see `tests.real.privacy.__main__`."""
