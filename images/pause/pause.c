/* The first process of every pod's sandbox: it holds the pod's namespaces and does nothing else.
   Where the containers of a pod share one process namespace it is their init, so it lets the kernel reap orphans. */
#include <signal.h>
#include <unistd.h>

static void end(int signal) { _exit(signal == SIGTERM ? 0 : 1); }

int main(void) {
	struct sigaction reap = {.sa_handler = SIG_DFL, .sa_flags = SA_NOCLDWAIT};
	struct sigaction stop = {.sa_handler = end};
	sigaction(SIGCHLD, &reap, 0);
	sigaction(SIGTERM, &stop, 0);
	sigaction(SIGINT, &stop, 0);
	for (;;) pause();
}
