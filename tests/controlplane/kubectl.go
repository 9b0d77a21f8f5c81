//go:build kubectl

package main

import kubectl "k8s.io/kubectl/pkg/cmd"

func init() {
	commands["kubectl"] = kubectl.NewDefaultKubectlCommand
}
