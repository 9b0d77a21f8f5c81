"""A real Kubernetes control plane on loopback: etcd, API server and controllers, without a cluster."""
