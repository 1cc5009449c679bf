"""What trained models did, measured: figures and tables beside the evaluation."""
