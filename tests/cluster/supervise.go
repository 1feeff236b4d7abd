package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// program is one long-running process of the cluster.
type program struct {
	name string
	path string // of the binary; empty: this one
	args []string
}

// supervisor starts the cluster's processes and, being process 1, reaps them and every orphan.
//
// It restarts nothing: a component that dies would hide a fault behind a second of silence. The cluster ends with it,
// and the journal says why.
type supervisor struct {
	at      paths
	journal *journal
	ended   chan string

	// Held while a process is started, so that the reaper cannot meet one it does not know yet.
	mutex    sync.Mutex
	programs map[int]string
	commands map[int]chan syscall.WaitStatus
}

func newSupervisor(at paths, journal *journal) *supervisor {
	s := &supervisor{
		at: at, journal: journal, ended: make(chan string, 1),
		programs: map[int]string{}, commands: map[int]chan syscall.WaitStatus{},
	}
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		for range children {
			s.reap()
		}
	}()
	go func() {
		<-stop
		os.Exit(0)
	}()
	return s
}

// start starts a long-running program; its output goes to a log file of its own.
func (s *supervisor) start(p program) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	pid, err := s.spawn(p)
	must("start "+p.name, err)
	s.programs[pid] = p.name
}

// command runs a program to its end.
func (s *supervisor) command(p program) error {
	s.mutex.Lock()
	pid, err := s.spawn(p)
	if err != nil {
		s.mutex.Unlock()
		return err
	}
	done := make(chan syscall.WaitStatus, 1)
	s.commands[pid] = done
	s.mutex.Unlock()
	if status := <-done; status != 0 {
		return fmt.Errorf("%s %s; see %s", p.name, describe(status), s.logFile(p.name))
	}
	return nil
}

func (s *supervisor) spawn(p program) (int, error) {
	log, err := os.OpenFile(s.logFile(p.name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	path := p.path
	if path == "" {
		path = "/proc/self/exe"
	}
	process, err := os.StartProcess(path, append([]string{p.name}, p.args...), &os.ProcAttr{
		Dir:   s.at.state,
		Env:   []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + s.at.state},
		Files: []*os.File{null, log, log},
	})
	if err != nil {
		return 0, err
	}
	return process.Pid, nil
}

func (s *supervisor) logFile(name string) string {
	return filepath.Join(s.at.state, "log", name+".log")
}

// reap collects every child that has ended, orphaned shims among them.
func (s *supervisor) reap() {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if done, ok := s.commands[pid]; ok {
			delete(s.commands, pid)
			done <- status
		}
		if name, ok := s.programs[pid]; ok {
			// A boot that waits for this program would wait in vain: end it here, with the cause.
			s.journal.failed(fmt.Sprintf("%s %s; see %s", name, describe(status), s.logFile(name)))
			os.Exit(1)
		}
	}
}

// watch blocks for the cluster's life: reap ends the process when a component does.
func (s *supervisor) watch() { select {} }

func describe(status syscall.WaitStatus) string {
	if status.Signaled() {
		return fmt.Sprintf("was killed by signal %d (%s)", status.Signal(), status.Signal())
	}
	return fmt.Sprintf("ended with status %d", status.ExitStatus())
}

// journal tells whoever waits outside how far the boot has come: one JSON object a line.
type journal struct {
	file  *os.File
	since time.Time
}

func openJournal(at paths) *journal {
	file, err := os.OpenFile(filepath.Join(at.state, "journal"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		die("node: %v", err)
	}
	return &journal{file: file, since: time.Now()}
}

func (j *journal) step(text string)   { j.write("step", text) }
func (j *journal) ready()             { j.write("ready", "") }
func (j *journal) failed(text string) { j.write("failed", text) }

func (j *journal) write(event, text string) {
	line, err := json.Marshal(map[string]any{
		"event": event, "text": text, "millis": time.Since(j.since).Milliseconds(),
	})
	if err == nil {
		_, _ = j.file.Write(append(line, '\n'))
	}
}
