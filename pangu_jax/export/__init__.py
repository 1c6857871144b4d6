"""Compiled artefacts: StableHLO for CPU, GPU and TPU; ONNX, and from it Ascend; each checked."""
