"""Real pods on one machine: containerd and a kubelet beside the control plane, images without a registry. Needs root."""
