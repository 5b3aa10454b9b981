"""Published networks, as teachers and baselines; `create_saliency` imports each when it is asked for."""
