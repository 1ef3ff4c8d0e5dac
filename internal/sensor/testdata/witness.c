/*
 * A program that says who it is: it writes "TOKEN IDENTITY\n" to descriptor 1, where TOKEN is its first argument and IDENTITY is part of
 * the file. So a test knows for each exec which bytes ran, whatever happens to paths, names and numbers meanwhile. No libc: it lives for a
 * tenth of a millisecond. The second argument says what it does besides.
 */
static volatile const char identity[] = "picosnitch-witness:0000000000000000";

#ifdef __x86_64__
enum { READ = 0, WRITE = 1, EXECVE = 59, EXIT = 60, WAIT4 = 61, RENAMEAT = 264, PRCTL = 157, CLONE3 = 435, NANOSLEEP = 35, UNLINKAT = 263 };
static long call(long n, long a, long b, long c, long d, long e)
{
	register long r10 asm("r10") = d, r8 asm("r8") = e;
	long ret;

	asm volatile("syscall" : "=a"(ret) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
	return ret;
}
asm(".globl _start\n_start: mov %rsp, %rdi\nand $-16, %rsp\ncall begin\n");
#else
enum { READ = 63, WRITE = 64, EXECVE = 221, EXIT = 93, WAIT4 = 260, RENAMEAT = 38, PRCTL = 167, CLONE3 = 435, NANOSLEEP = 101, UNLINKAT = 35 };
static long call(long n, long a, long b, long c, long d, long e)
{
	register long x8 asm("x8") = n, x0 asm("x0") = a, x1 asm("x1") = b, x2 asm("x2") = c, x3 asm("x3") = d, x4 asm("x4") = e;

	asm volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
	return x0;
}
asm(".globl _start\n_start: mov x0, sp\nbl begin\n");
#endif

static void die(long code)
{
	for (;;)
		call(EXIT, code, 0, 0, 0, 0);
}

static long len(const char *s)
{
	long n = 0;

	while (s[n])
		n++;
	return n;
}

static void say(const char *token)
{
	char line[128];
	long n = 0, i;

	for (i = 0; token[i] && n < 100; i++)
		line[n++] = token[i];
	line[n++] = ' ';
	for (i = sizeof(identity) - 17; identity[i]; i++)
		line[n++] = identity[i];
	line[n++] = '\n';
	if (call(WRITE, 1, (long)line, n, 0, 0) != n)
		die(9);
}

static void sleep_ms(long ms)
{
	long t[2] = {0, ms * 1000000};

	call(NANOSLEEP, (long)t, 0, 0, 0, 0);
}

static long number(const char *s)
{
	long n = 0;

	while (*s >= '0' && *s <= '9')
		n = n * 10 + *s++ - '0';
	return n;
}

/* fork(), with the number that the child shall have if `pid` is not 0: clone3(2), set_tid. */
static long fork_as(long pid)
{
	int tid = pid;
	unsigned long args[10] = {0, 0, 0, 0, 17 /* SIGCHLD */, 0, 0, 0, pid ? (unsigned long)&tid : 0, pid ? 1 : 0};

	return call(CLONE3, (long)args, sizeof(args), 0, 0, 0);
}

static void run(const char *path, const char *token, const char *what, const char *more, const char *more2, char **env)
{
	const char *argv[] = {path, token, what, more, more2, 0};

	call(EXECVE, (long)path, (long)argv, (long)env, 0, 0);
	die(8);
}

/* "PREFIX.N" */
static void count(char *to, const char *prefix, long n)
{
	char digits[20];
	long i = 0, k = 0;

	while (prefix[k]) {
		to[k] = prefix[k];
		k++;
	}
	to[k++] = '.';
	do
		digits[i++] = '0' + n % 10;
	while (n /= 10);
	while (i)
		to[k++] = digits[--i];
	to[k] = 0;
}

static int is(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

void begin(long *stack)
{
	long argc = stack[0], i, n, status, pid;
	char **argv = (char **)&stack[1], **env = argv + argc + 1;
	const char *what = argc > 2 ? argv[2] : "";
	char token[128];

	if (argc < 2 || len(argv[1]) > 90)
		die(7);
	say(argv[1]);
	if (is(what, "name")) { /* another's name */
		call(PRCTL, 15 /* PR_SET_NAME */, (long)"sshd", 0, 0, 0);
		sleep_ms(1);
	}
	if (is(what, "argv")) { /* other arguments, in place */
		for (i = len(argv[0]); i--;)
			argv[0][i] = 'x';
		for (i = len(argv[1]); i--;)
			argv[1][i] = 'x';
		sleep_ms(1);
	}
	if (is(what, "self")) { /* puts argv[3] in its own place, and executes that, in the same process */
		count(token, argv[1], 1);
		if (call(RENAMEAT, -100, (long)argv[3], -100, (long)argv[0], 0))
			die(6);
		run(argv[0], token, "", 0, 0, env);
	}
	if (is(what, "gone")) /* unlinks itself */
		call(UNLINKAT, -100, (long)argv[0], 0, 0, 0);
	if (is(what, "bomb")) /* argv[3] children of argv[4], two at each level */
		for (n = number(argv[3]), i = 0; i < 2 && n > 1; i++) {
			char half[20];

			count(token, argv[1], i);
			count(half, "", n / 2);
			if (!fork_as(0))
				run(argv[0], token, "bomb", half + 1, 0, env);
		}
	if (is(what, "reuse")) /* argv[3] and argv[4] in turn, a hundred times, always under the same number */
		for (pid = fork_as(0), i = 0; i < 100; i++) {
			if (!pid) {
				count(token, argv[1], i);
				run(argv[3 + (i & 1)], token, "", 0, 0, env);
			}
			if (call(WAIT4, pid, (long)&status, 0, 0, 0) != pid || (status & 0xffff))
				die(5);
			n = fork_as(pid);
			if (n < 0) /* somebody else has it now */
				n = fork_as(0);
			if (!n) {
				pid = 0;
				continue;
			}
			pid = n;
		}
	while (call(WAIT4, -1, (long)&status, 0, 0, 0) > 0)
		;
	die(0);
}
