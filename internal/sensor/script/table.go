package script

// grammar is how an interpreter reads its arguments: which of them take a value, and which one says what is run. Letters
// are those of short options, which may be written together (-Bc TEXT); words are long options without their dashes,
// whose value is the next argument or stands after '='.
type grammar struct {
	// names are the names of the executable without a version ("python" stands for python3.12, too).
	names string

	value string // letters that take the rest of their argument, or else the next one, as their value
	rest  string // letters that take what follows in the same argument, if anything does
	words string // long options that take the next argument as their value

	command, commandWords string // their value is the program text
	ends                  string // after these letters every argument is the program's own, and there is no file: sh -s
	module, moduleWords   string // their value is a name that is looked up
	file, fileWords       string // their value is the path of the script

	keep     bool   // program text may come before a file that is run, too: lua -e TEXT FILE
	flagged  bool   // -c is a flag, and the text is the first operand: sh -c -e TEXT
	oneDash  bool   // long options begin with one dash: java, tclsh
	plus     bool   // +o is an option like -o
	text     bool   // the first operand is program text: awk
	modules  bool   // the first operand is a name, and a file only with one of the suffixes: java Main, java Main.java
	suffixes string // of these; else those that are tried behind an operand that does not exist: node app
	verbs    string // first operands that are followed by the real one: deno run FILE
	texts    string // first operands that are followed by program text: deno eval TEXT
	folder   string // letters whose value is the folder to which the operand is relative: ruby -C DIR
	noStdin  bool   // without an operand nothing is run: java
}

// table has the interpreters whose arguments we can read. The sources are the manual pages: python(1), bash(1), dash(1), zsh(1), ksh(1),
// fish(1), perlrun(1), ruby(1), node(1), php(1), lua(1), luajit(1), tclsh(1), expect(1), gawk(1), java(1), Rscript(1), …
func table() []grammar {
	return []grammar{
		{names: "python pypy micropython", value: "WXQ", words: "check-hash-based-pycs", command: "c", module: "m"},
		{names: "sh dash ash bash rbash zsh ksh mksh oksh lksh rksh yash posh bosh osh", value: "oO", words: "rcfile init-file emulate", command: "c", flagged: true, ends: "s", plus: true},
		{names: "fish", value: "CdofD", words: "init-command debug debug-output features profile profile-startup", command: "c", commandWords: "command"},
		{names: "perl", value: "I", rest: "CDFiMmVx", command: "eE"},
		{names: "ruby jruby truffleruby", value: "IrE", rest: "FiKTWx", words: "encoding external-encoding internal-encoding backtrace-limit", command: "e", folder: "CX"},
		{names: "node nodejs", value: "rC", words: "require import loader experimental-loader conditions input-type title icu-data-dir openssl-config inspect-port env-file env-file-if-exists experimental-config-file", command: "ep", commandWords: "eval print", suffixes: ".js .json .mjs .cjs", verbs: "inspect"},
		{names: "bun", value: "rd", words: "preload define loader cwd config", command: "ep", commandWords: "eval print", suffixes: ".js .ts .tsx .jsx .mjs", verbs: "run"},
		{names: "deno", value: "cL", words: "config log-level import-map lock cert location seed", verbs: "run test bench serve", texts: "eval", noStdin: true},
		{names: "php php-cli php-cgi", value: "cdzTSt", words: "php-ini define zend-extension server docroot timing", command: "rBRE", commandWords: "run process-begin process-code process-end", file: "fF", fileWords: "file process-file"},
		{names: "lua", value: "l", command: "e", keep: true},
		{names: "luajit", value: "l", rest: "jO", command: "e", keep: true},
		{names: "tclsh wish", oneDash: true, words: "encoding display colormap geometry name visual use"},
		{names: "expect", rest: "D", command: "c", keep: true, file: "f"},
		{names: "awk gawk mawk nawk original-awk", value: "FviloA", words: "assign field-separator include load", text: true, file: "fE", fileWords: "file exec", command: "e", commandWords: "source"},
		{names: "java", oneDash: true, words: "cp classpath -class-path p -module-path -add-modules -add-reads -add-exports -add-opens -limit-modules -upgrade-module-path -source -describe-module d -enable-native-access", fileWords: "jar", moduleWords: "m -module", modules: true, suffixes: ".java", noStdin: true},
		{names: "Rscript", value: "g", words: "default-packages", command: "e"},
		{names: "R", value: "gd", words: "args gui debugger encoding", command: "e", file: "f", fileWords: "file"},
		{names: "julia", value: "CJpHLmO", words: "cpu-target sysimage procs home load machine-file project threads gcthreads optimize", command: "eE", commandWords: "eval print"},
		{names: "guile", value: "Lxle", command: "c", file: "s"},
		{names: "pwsh", oneDash: true, words: "ConfigurationName CustomPipeName ExecutionPolicy ex InputFormat OutputFormat o SettingsFile Version WindowStyle WorkingDirectory wd", commandWords: "Command c EncodedCommand e ec", fileWords: "File f"},
		{names: "mono mono-sgen", words: "config runtime gc debugger-agent", noStdin: true},
		{names: "dotnet", words: "depsfile runtimeconfig additionalprobingpath additional-deps fx-version roll-forward", verbs: "exec", suffixes: ".dll", noStdin: true},
		{names: "gjs gjs-console", value: "I", words: "include-path coverage-prefix coverage-output profile", command: "c", commandWords: "command"},
		{names: "escript", noStdin: true},
		{names: "raku", value: "I", words: "doc profile", command: "e"},
		// What runs another machine's programs, or any program at all, hides it in the same way.
		{names: "qemu-aarch64 qemu-x86_64 qemu-arm qemu-aarch64-static qemu-x86_64-static qemu-arm-static", oneDash: true, words: "L E U g 0 B R cpu", noStdin: true},
		{names: "ld.so ld-linux.so ld-linux-x86-64.so ld-linux-aarch64.so ld-linux-armhf.so ld-musl-x86_64.so ld-musl-aarch64.so", words: "library-path preload audit argv0 inhibit-rpath inhibit-cache glibc-hwcaps-prepend glibc-hwcaps-mask", noStdin: true},
	}
}

// multiCall tells executables that are what they are called: argv[0], or the first argument, is the interpreter's name.
func multiCall(name string) bool { return name == "busybox" || name == "toybox" }
