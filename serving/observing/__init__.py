"""What operators see of the server: metrics, logs, the usage ledger, explanations, traces."""
