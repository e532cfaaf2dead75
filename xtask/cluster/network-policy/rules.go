package main

import (
	"fmt"
	"slices"
	"strings"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// state is all that decides about a node's rules.
type state struct {
	node       string
	pods       []*core.Pod
	namespaces []*core.Namespace
	policies   []*networking.NetworkPolicy
}

// render gives the node's whole rule set. The same state gives the same text, in whatever order it is listed.
//
// A connection is judged once, at its first packet: its sender's node asks for the sender's egress rules, its receiver's
// node for the receiver's ingress rules. What the node itself sends (probes) is not judged.
func render(s state) string {
	var chains, ingress, egress []string
	for _, pod := range s.pods {
		if pod.Spec.NodeName != s.node || !routable(pod) {
			continue
		}
		for _, direction := range []networking.PolicyType{networking.PolicyTypeIngress, networking.PolicyTypeEgress} {
			rules, isolated := s.rules(pod, direction)
			if !isolated {
				continue
			}
			name := fmt.Sprintf("%s-%s", strings.ToLower(string(direction)), pod.UID)
			element := fmt.Sprintf("%s : jump %s", pod.Status.PodIP, name)
			if direction == networking.PolicyTypeIngress {
				ingress = append(ingress, element)
			} else {
				egress = append(egress, element)
			}
			chains = append(chains, chain(name, pod, rules))
		}
	}
	slices.Sort(chains)
	var text strings.Builder
	text.WriteString("add table ip fv-policy\ndelete table ip fv-policy\n")
	text.WriteString("table ip fv-policy {\n")
	for _, c := range chains {
		text.WriteString(c)
	}
	vmap := func(field string, elements []string) string {
		if len(elements) == 0 {
			return ""
		}
		slices.Sort(elements)
		return fmt.Sprintf("    ip %s vmap { %s }\n", field, strings.Join(elements, ", "))
	}
	const known = "    ct state established,related accept\n"
	text.WriteString("  chain forward {\n    type filter hook forward priority filter; policy accept;\n" + known)
	text.WriteString(vmap("saddr", egress) + vmap("daddr", ingress) + "  }\n")
	// What a pod sends to its own node is not forwarded.
	text.WriteString("  chain input {\n    type filter hook input priority filter; policy accept;\n" + known)
	text.WriteString(vmap("saddr", egress) + "  }\n}\n")
	return text.String()
}

func chain(name string, pod *core.Pod, rules []string) string {
	slices.Sort(rules)
	rules = slices.Compact(rules)
	var text strings.Builder
	fmt.Fprintf(&text, "  # %s/%s\n  chain %s {\n", pod.Namespace, pod.Name, name)
	for _, rule := range rules {
		fmt.Fprintf(&text, "    %s\n", rule)
	}
	text.WriteString("    drop\n  }\n")
	return text.String()
}

// rules are the matches of what the policies allow, and whether there is any policy for the pod in this direction.
func (s state) rules(pod *core.Pod, direction networking.PolicyType) (rules []string, isolated bool) {
	for _, policy := range s.policies {
		if policy.Namespace != pod.Namespace || !matches(&policy.Spec.PodSelector, pod.Labels) ||
			!slices.Contains(types(policy), direction) {
			continue
		}
		isolated = true
		if direction == networking.PolicyTypeIngress {
			for _, rule := range policy.Spec.Ingress {
				for _, source := range s.sources(policy.Namespace, rule.From) {
					for _, port := range ports(rule.Ports, pod) {
						rules = append(rules, join(source, port))
					}
				}
			}
			continue
		}
		for _, rule := range policy.Spec.Egress {
			rules = append(rules, s.egress(policy.Namespace, rule)...)
		}
	}
	return rules, isolated
}

// egress differs from ingress in that each receiver has its own meaning of a port's name.
func (s state) egress(namespace string, rule networking.NetworkPolicyEgressRule) []string {
	var rules []string
	if !named(rule.Ports) {
		for _, target := range s.peers(namespace, rule.To, "daddr") {
			for _, port := range ports(rule.Ports, nil) {
				rules = append(rules, join(target, port))
			}
		}
		return rules
	}
	for _, pod := range s.pods {
		if routable(pod) && (len(rule.To) == 0 || slices.ContainsFunc(rule.To, func(peer networking.NetworkPolicyPeer) bool {
			return s.selects(namespace, peer, pod)
		})) {
			for _, port := range ports(rule.Ports, pod) {
				rules = append(rules, join("ip daddr "+pod.Status.PodIP, port))
			}
		}
	}
	return rules
}

func (s state) sources(namespace string, from []networking.NetworkPolicyPeer) []string {
	return s.peers(namespace, from, "saddr")
}

// peers are matches of the addresses; one match of everything where no peer is named.
func (s state) peers(namespace string, peers []networking.NetworkPolicyPeer, field string) []string {
	if len(peers) == 0 {
		return []string{""}
	}
	var found, addresses []string
	for _, peer := range peers {
		if block := peer.IPBlock; block != nil {
			if strings.Contains(block.CIDR, ":") {
				continue
			}
			match := fmt.Sprintf("ip %s %s", field, block.CIDR)
			if len(block.Except) > 0 {
				match += fmt.Sprintf(" ip %s != { %s }", field, strings.Join(block.Except, ", "))
			}
			found = append(found, match)
			continue
		}
		for _, pod := range s.pods {
			if routable(pod) && s.selects(namespace, peer, pod) {
				addresses = append(addresses, pod.Status.PodIP)
			}
		}
	}
	if len(addresses) > 0 {
		slices.Sort(addresses)
		found = append(found, fmt.Sprintf("ip %s { %s }", field, strings.Join(slices.Compact(addresses), ", ")))
	}
	return found
}

func (s state) selects(namespace string, peer networking.NetworkPolicyPeer, pod *core.Pod) bool {
	if peer.IPBlock != nil {
		return false
	}
	if peer.PodSelector != nil && !matches(peer.PodSelector, pod.Labels) {
		return false
	}
	if peer.NamespaceSelector == nil {
		return pod.Namespace == namespace
	}
	return slices.ContainsFunc(s.namespaces, func(n *core.Namespace) bool {
		return n.Name == pod.Namespace && matches(peer.NamespaceSelector, n.Labels)
	})
}

// ports are matches of the ports, with names as the receiver has them; one match of everything where none is listed.
func ports(list []networking.NetworkPolicyPort, receiver *core.Pod) []string {
	if len(list) == 0 {
		return []string{""}
	}
	var found []string
	for _, port := range list {
		protocol := core.ProtocolTCP
		if port.Protocol != nil {
			protocol = *port.Protocol
		}
		match := strings.ToLower(string(protocol))
		switch {
		case port.Port == nil:
			found = append(found, "meta l4proto "+match)
		case port.Port.Type == intstr.Int && port.EndPort != nil:
			found = append(found, fmt.Sprintf("%s dport %d-%d", match, port.Port.IntVal, *port.EndPort))
		case port.Port.Type == intstr.Int:
			found = append(found, fmt.Sprintf("%s dport %d", match, port.Port.IntVal))
		case receiver != nil:
			for _, container := range receiver.Spec.Containers {
				for _, own := range container.Ports {
					if own.Name == port.Port.StrVal && own.Protocol == protocol {
						found = append(found, fmt.Sprintf("%s dport %d", match, own.ContainerPort))
					}
				}
			}
		}
	}
	return found
}

func named(list []networking.NetworkPolicyPort) bool {
	return slices.ContainsFunc(list, func(port networking.NetworkPolicyPort) bool {
		return port.Port != nil && port.Port.Type == intstr.String
	})
}

// types are the directions of a policy; the API server fills them in, older objects may lack them.
func types(policy *networking.NetworkPolicy) []networking.PolicyType {
	if len(policy.Spec.PolicyTypes) > 0 {
		return policy.Spec.PolicyTypes
	}
	found := []networking.PolicyType{networking.PolicyTypeIngress}
	if len(policy.Spec.Egress) > 0 {
		found = append(found, networking.PolicyTypeEgress)
	}
	return found
}

// routable pods have an address of their own.
func routable(pod *core.Pod) bool {
	ended := pod.Status.Phase == core.PodSucceeded || pod.Status.Phase == core.PodFailed
	return !pod.Spec.HostNetwork && !ended && pod.Status.PodIP != "" && !strings.Contains(pod.Status.PodIP, ":")
}

func matches(selector *meta.LabelSelector, of map[string]string) bool {
	parsed, err := meta.LabelSelectorAsSelector(selector)
	// The API server refuses what cannot be parsed.
	return err == nil && parsed.Matches(labels.Set(of))
}

func join(parts ...string) string {
	var found []string
	for _, part := range append(parts, "return") {
		if part != "" {
			found = append(found, part)
		}
	}
	return strings.Join(found, " ")
}
