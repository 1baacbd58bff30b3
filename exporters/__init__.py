"""Write a trained model as an ONNX file that says everything about itself, and prove it equal to the model."""
