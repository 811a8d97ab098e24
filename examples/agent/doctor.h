// `revdial-agent doctor`: says of each hop to the proxy and to the targets whether it works, and if
// not, what to do.
#ifndef REVDIAL_AGENT_DOCTOR_H
#define REVDIAL_AGENT_DOCTOR_H

// Runs the subcommand: argv[0] is "doctor"; targets that should be reachable follow, then options.
// Prints a line for each hop. Returns what to exit with.
int doctor_main(char **argv);

#endif  // REVDIAL_AGENT_DOCTOR_H
