//! The ONNX models.
