"""`yonos web`: a page for dropping pictures and videos on, served to this machine by Gradio.

`work` does what is ordered, `page` shows it, `yonos_trt.cli.web` starts the server. Only `page` needs the
extra ``[web]``.
"""
