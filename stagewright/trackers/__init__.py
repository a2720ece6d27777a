"""A run seen in TensorBoard, W&B or MLflow: processes beside the run read its files and send what cannot be taken back."""
