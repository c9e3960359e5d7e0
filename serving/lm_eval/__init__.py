"""The engine under EleutherAI's lm-evaluation-harness: `python -m serving.lm_eval run --model jaxinfer ...`.

Importing this package needs no lm-eval; `serving.lm_eval.adapter` does (the extra `lm-eval`), and registers the model.
"""
