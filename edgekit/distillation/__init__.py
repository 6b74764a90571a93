"""Training: finetuning on labels, and distilling on labels, soft targets, hidden states and attention relations."""
