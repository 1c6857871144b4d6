"""From a jaxpr to an ONNX graph of opset 17, by a table of one small rule per primitive."""
