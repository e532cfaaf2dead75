package main

import (
	"strings"
	"testing"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func pod(name, node, ip string, labels map[string]string) *core.Pod {
	p := &core.Pod{ObjectMeta: meta.ObjectMeta{Name: name, Namespace: "ns", UID: "u", Labels: labels}}
	p.Spec.NodeName = node
	p.Spec.Containers = []core.Container{{Ports: []core.ContainerPort{{Name: "web", ContainerPort: 8080, Protocol: "TCP"}}}}
	p.Status.PodIP = ip
	return p
}

func TestRender(t *testing.T) {
	server := pod("server", "node1", "10.0.0.1", map[string]string{"app": "server"})
	client := pod("client", "node2", "10.0.0.2", map[string]string{"app": "client"})
	ended := pod("ended", "node2", "10.0.0.3", map[string]string{"app": "client"})
	ended.Status.Phase = core.PodSucceeded
	of := func(app string) meta.LabelSelector {
		return meta.LabelSelector{MatchLabels: map[string]string{"app": app}}
	}
	clients := of("client")
	web, udp, end := intstr.FromString("web"), core.ProtocolUDP, int32(20)
	ten := intstr.FromInt32(10)
	ingress := func(rules ...networking.NetworkPolicyIngressRule) networking.NetworkPolicySpec {
		return networking.NetworkPolicySpec{PodSelector: of("server"), Ingress: rules}
	}
	for name, c := range map[string]struct {
		spec   networking.NetworkPolicySpec
		has    []string
		hasNot []string
	}{
		"deny": {ingress(), []string{"chain ingress-u {\n    drop", "ip daddr vmap { 10.0.0.1 : jump ingress-u }"}, []string{"return", "vmap { 10.0.0.2"}},
		"any":  {ingress(networking.NetworkPolicyIngressRule{}), []string{"chain ingress-u {\n    return\n    drop"}, nil},
		"peer and named port": {
			ingress(networking.NetworkPolicyIngressRule{
				From:  []networking.NetworkPolicyPeer{{PodSelector: &clients}},
				Ports: []networking.NetworkPolicyPort{{Port: &web}},
			}),
			[]string{"ip saddr { 10.0.0.2 } tcp dport 8080 return"}, []string{"10.0.0.3"},
		},
		"block and range": {
			ingress(networking.NetworkPolicyIngressRule{
				From:  []networking.NetworkPolicyPeer{{IPBlock: &networking.IPBlock{CIDR: "10.0.0.0/8", Except: []string{"10.1.0.0/16"}}}},
				Ports: []networking.NetworkPolicyPort{{Protocol: &udp, Port: &ten, EndPort: &end}},
			}),
			[]string{"ip saddr 10.0.0.0/8 ip saddr != { 10.1.0.0/16 } udp dport 10-20 return"}, nil,
		},
		"a peer that nobody is": {
			ingress(networking.NetworkPolicyIngressRule{From: []networking.NetworkPolicyPeer{{NamespaceSelector: &clients}}}),
			[]string{"chain ingress-u {\n    drop"}, []string{"return"},
		},
		"egress": {
			networking.NetworkPolicySpec{
				PodSelector: of("server"),
				PolicyTypes: []networking.PolicyType{networking.PolicyTypeEgress},
				Egress: []networking.NetworkPolicyEgressRule{{
					To:    []networking.NetworkPolicyPeer{{PodSelector: &clients}},
					Ports: []networking.NetworkPolicyPort{{Port: &web}},
				}},
			},
			[]string{"ip daddr 10.0.0.2 tcp dport 8080 return", "ip saddr vmap { 10.0.0.1 : jump egress-u }"}, []string{"daddr vmap"},
		},
		"another pod's": {networking.NetworkPolicySpec{PodSelector: of("client")}, nil, []string{"drop"}},
	} {
		policy := &networking.NetworkPolicy{ObjectMeta: meta.ObjectMeta{Name: "p", Namespace: "ns"}, Spec: c.spec}
		s := state{node: "node1", pods: []*core.Pod{server, client, ended}, policies: []*networking.NetworkPolicy{policy}}
		rules := render(s)
		for _, want := range c.has {
			if !strings.Contains(rules, want) {
				t.Errorf("%s: no %q in\n%s", name, want, rules)
			}
		}
		for _, not := range c.hasNot {
			if strings.Contains(rules, not) {
				t.Errorf("%s: %q in\n%s", name, not, rules)
			}
		}
	}
}
