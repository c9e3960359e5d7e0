"""How good are a model's answers: tasks with exact answers, scoring, statistics, reports. Plain Python, no jax."""
