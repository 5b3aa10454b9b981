"""salcap-mini, the bundled captioner: a saliency-aware encoder inside a VisionEncoderDecoderModel."""
