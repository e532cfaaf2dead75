// Command network-policy enforces NetworkPolicies for the pods of one node, by nftables in the network namespace that it
// runs in. It watches, renders the whole rule set, and replaces it in one transaction whenever it has changed.
package main

import (
	"flag"
	"log"
	"os"
	"os/exec"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// settle is how long events are collected before they are rendered: pods come in crowds.
const settle = 100 * time.Millisecond

func main() {
	kubeconfig := flag.String("kubeconfig", "", "how to reach the API server")
	node := flag.String("node", "", "the node whose pods are guarded")
	flag.Parse()
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		log.Fatalf("cannot use the kubeconfig %s: %v", *kubeconfig, err)
	}
	config.UserAgent = "network-policy"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		log.Fatalf("cannot make a client from %s: %v", *kubeconfig, err)
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	pods := factory.Core().V1().Pods()
	namespaces := factory.Core().V1().Namespaces()
	policies := factory.Networking().V1().NetworkPolicies()
	changed := make(chan struct{}, 1)
	notify := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	handler := cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { notify() },
		UpdateFunc: func(any, any) { notify() },
		DeleteFunc: func(any) { notify() },
	}
	for _, informer := range []cache.SharedIndexInformer{pods.Informer(), namespaces.Informer(), policies.Informer()} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			log.Fatal(err)
		}
	}
	factory.Start(nil)
	factory.WaitForCacheSync(nil)
	notify()
	applied := ""
	for range changed {
		time.Sleep(settle)
		state := state{node: *node}
		// Listing a cache does not fail.
		state.pods, _ = pods.Lister().List(labels.Everything())
		state.namespaces, _ = namespaces.Lister().List(labels.Everything())
		state.policies, _ = policies.Lister().List(labels.Everything())
		rules := render(state)
		if rules == applied {
			continue
		}
		if err := apply(rules); err != nil {
			log.Printf("cannot apply the rules, will try again: %v\n%s", err, rules)
			time.AfterFunc(5*time.Second, notify)
			continue
		}
		applied = rules
	}
}

func apply(rules string) error {
	command := exec.Command("nft", "-f", "-")
	command.Stdin = strings.NewReader(rules)
	command.Stderr = os.Stderr
	return command.Run()
}
