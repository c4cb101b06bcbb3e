"""Fast inference: one denoising step and the encoder, compiled once by an engine; the sampling loop stays ours.

compiled.py puts an engine into a policy and checks what it computes, graphs.py says what is compiled, backends.py holds
the engines, onnx_export.py writes and keeps their files, threads.py keeps them off other processes' cores, timing.py
measures. A new engine is one function in backends.py, its entry in the dict there, and its name in `EngineName`.
"""
