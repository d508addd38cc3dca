"""Training for yonos-trt: scale distillation, decoder fine-tuning and their siblings.

``yonos-train --preset lite --data IMAGES --run RUN`` trains x2, x4 and x8 one-step models;
``yonos_train.model`` holds
the networks and the checkpoint folder that ``yonos-export`` takes.
"""
