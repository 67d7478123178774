# Completion of shifterimg for bash (with bash-completion: put it into /usr/share/bash-completion/completions/shifterimg).
# Names of images come from `shifterimg images`, so they are those that you may run; users and groups are this machine's.

_shifterimg_images() {
    # names contain colons, which bash takes for separators: hand over what stands behind the last one that was typed
    local typed=$1 name
    local -a names
    mapfile -t names < <(shifterimg images 2>/dev/null | awk '{print $NF}')
    for name in "${names[@]}"; do
        [[ $name == "$typed"* ]] && COMPREPLY+=("${name#"${typed%"${typed##*:}"}"}")
    done
}

_shifterimg_list() {
    # the last item of a comma list, completed by compgen's option $1
    local typed=$2 before=
    [[ $typed == *,* ]] && before=${typed%,*},
    mapfile -t COMPREPLY < <(compgen "$1" -P "$before" -- "${typed##*,}")
}

_shifterimg() {
    local verbs='images lookup pull pullnb login rm restore import acl history queue expire autoexpire'
    local common='--help --version --verbose --json -h -V -v -j'
    local verb= word previous current options index arguments=0
    COMPREPLY=()
    # the word as typed: with colons, which bash has taken apart
    local line=${COMP_LINE:0:COMP_POINT}
    current=${line##*[[:space:]]}
    index=${#COMP_WORDS[@]}
    local -a words
    read -r -a words <<<"${line% *} "
    for ((index = 1; index < ${#words[@]}; index++)); do
        word=${words[index]}
        case $word in
            -u | --user | -g | --group | --username | -F | --format | --by | --action | --since | --until | -n | --limit | \
                --as-of)
                ((index++))
                ;;
            -*) ;;
            *) if [[ -z $verb ]]; then verb=$word; else ((arguments++)); fi ;;
        esac
    done
    previous=${words[${#words[@]} - 1]}
    ((${#words[@]} > 1)) || previous=

    case $current in
        --user=*) previous=--user current=${current#*=} ;;
        --group=*) previous=--group current=${current#*=} ;;
        --format=*) previous=--format current=${current#*=} ;;
        --by=*) previous=--by current=${current#*=} ;;
    esac
    case $previous in
        -u | --user) _shifterimg_list -u "$current"; return ;;
        -g | --group) _shifterimg_list -g "$current"; return ;;
        --by) mapfile -t COMPREPLY < <(compgen -u -- "$current"); return ;;
        -F | --format) mapfile -t COMPREPLY < <(compgen -W 'squashfs oci-layout docker-archive' -- "$current"); return ;;
        --username | --action | --since | --until | -n | --limit | --as-of) return ;;
    esac

    if [[ $current == -* ]]; then
        case $verb in
            images) options='--as-of' ;;
            pull | pullnb) options='--user --group -u -g' ;;
            login) options='--username' ;;
            import) options='--format --user --group -F -u -g' ;;
            acl) options='--user --group --public -u -g' ;;
            autoexpire) options='--dry-run' ;;
            history) options='--by --action --since --until --limit -n' ;;
            '') options='--user --group --public --username --format --by --action --since --until --limit --dry-run --as-of' ;;
        esac
        mapfile -t COMPREPLY < <(compgen -W "$common $options" -- "$current")
        return
    fi
    case $verb in
        '') mapfile -t COMPREPLY < <(compgen -W "$verbs" -- "$current") ;;
        lookup | pull | pullnb | acl | history | expire | restore) ((arguments)) || _shifterimg_images "$current" ;;
        rm) _shifterimg_images "$current" ;;
        import)
            if ((arguments == 0)); then
                compopt -o filenames 2>/dev/null
                mapfile -t COMPREPLY < <(compgen -f -- "$current")
            fi
            ;;
    esac
}

complete -F _shifterimg shifterimg
