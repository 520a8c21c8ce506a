// SPDX-License-Identifier: Apache-2.0

/** Why a container is not counted, or in part, and what to do about it. */
export const reasons: Record<string, [why: string, todo: string]> = {
  starting: ["Its network namespace or its interface is not there yet.", "Nothing, if it goes on within seconds."],
  ended: ["It ended before its interface was there.", "Nothing: it had no network yet."],
  host_network: [
    "It is in the host's network and is not counted by its cgroup.",
    "Turn accounting.cgroup on, and run the container in a cgroup v2.",
  ],
  shared_network: [
    "Its traffic is counted with the container whose network it uses.",
    "Turn accounting.cgroup on to tell it apart.",
  ],
  several_networks: [
    "Its processes are in several network namespaces, or are too many to look at. The interfaces in one of them are counted.",
    "Turn accounting.cgroup on to count all of it.",
  ],
  no_host_veth: ["It has no interface that leads out, or is a nested container's.", "Nothing, if it should have no network."],
  attach_failed: [
    "Attaching to its interface failed.",
    "See the log of nettally, and run nettally check. Another attach.priority helps beside an ingress qdisc.",
  ],
  excluded: ["The configuration leaves it out since a moment when it was running.", "Change watch if it is to be counted."],
  interface_excluded: [
    "The configuration leaves an interface of it out. Its other interfaces are counted.",
    "Change attach.interfaces if that is to be counted.",
  ],
  partly_counted: [
    "An interface of it leads out and can't be counted: its packets have no Ethernet header. The others are counted.",
    "Nothing: the rest is right.",
  ],
  cgroup_taken: [
    "It could be counted by its cgroup alone, and the program of another allows none beside it.",
    "The log and nettally check name that program and its cgroup.",
  ],
  shadowed: [
    "The program of another ends the chain before some packets reach nettally.",
    "Run nettally check: it names the interface. attach.mode: tcx comes before clsact's filters.",
  ],
};

/** The reasons that leave a part uncounted. */
export const inPart = new Set(["several_networks", "interface_excluded", "partly_counted", "shadowed"]);

export function reason(of: string): [why: string, todo: string] {
  return reasons[of] ?? [of === "" ? "It is counted." : of, "See the log of nettally."];
}

/** How a container is on the network, in words. */
export const countedBy: Record<string, string> = {
  interfaces: "by its interfaces",
  cgroup: "by its cgroup (IP)",
  "": "not counted",
};
