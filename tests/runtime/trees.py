"""Files of other machines below a root, as their kernels write them."""

_CPU = "sys/devices/system/cpu"

#: A Jetson AGX Orin with JetPack 6.2.
ORIN = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "proc/cpuinfo": "processor\t: 0\nBogoMIPS\t: 62.50\nFeatures\t: fp asimd asimdhp asimddp\n\nprocessor\t: 1\n",
    "proc/meminfo": "MemTotal:       64336124 kB\nMemFree:        50000000 kB\n",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: x\n",
    "etc/nvpmodel.conf": "< PARAM TYPE=FILE NAME=X >\n< POWER_MODEL ID=0 NAME=MAXN >\nCPU 0\n"
    "< POWER_MODEL ID=2 NAME=MODE_30W >\n",
    "var/lib/nvpmodel/status": "pmode:0000\n",
    "var/lib/dpkg/status": "Package: libc6\nVersion: 2.35\n\nPackage: nvidia-jetpack\nStatus: install ok installed\n"
    "Version: 6.2+b77\n\nPackage: zlib1g\nVersion: 1.2\n",
    f"{_CPU}/cpu0/cpufreq/scaling_governor": "schedutil\n",
    f"{_CPU}/cpu0/cpufreq/scaling_min_freq": "729600\n",
    f"{_CPU}/cpu0/cpufreq/scaling_max_freq": "2201600\n",
    f"{_CPU}/cpu0/cpufreq/scaling_cur_freq": "729600\n",
    f"{_CPU}/cpu1/cpufreq/scaling_cur_freq": "1728000\n",
    "sys/class/devfreq/15340000.vic/cur_freq": "115200000\n",
    "sys/class/devfreq/17000000.gpu/min_freq": "1300500000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "1300500000\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "1300500000\n",
    "sys/class/thermal/thermal_zone0/temp": "48312\n",
    "sys/class/thermal/thermal_zone1/temp": "51437\n",
    "sys/class/thermal/thermal_zone2/temp": "-256000\n",
    "sys/class/thermal/cooling_device0/type": "cpu-throttle-alert\n",
    "sys/class/thermal/cooling_device0/cur_state": "0\n",
    "sys/class/thermal/cooling_device1/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device1/cur_state": "3\n",
    "sys/class/hwmon/hwmon1/oc1_event_cnt": "2\n",
    "sys/class/hwmon/hwmon1/oc3_event_cnt": "1\n",
    "sys/class/hwmon/hwmon4/name": "ina3221\n",
    "sys/class/hwmon/hwmon4/in1_label": "VDD_GPU_SOC\n",
    "sys/class/hwmon/hwmon4/in1_input": "19000\n",
    "sys/class/hwmon/hwmon4/curr1_input": "200\n",
    "sys/class/hwmon/hwmon4/in2_label": "VDD_CPU_CV\n",
    "sys/class/hwmon/hwmon4/in2_input": "19000\n",
    "sys/class/hwmon/hwmon4/curr2_input": "100\n",
    "sys/class/hwmon/hwmon4/in3_label": "VIN_SYS_5V0\n",
    "sys/class/hwmon/hwmon4/in3_input": "5000\n",
    "sys/class/hwmon/hwmon4/curr3_input": "700\n",
    "sys/class/hwmon/hwmon4/in7_label": "sum of shunt voltages\n",
}

#: A desktop of Intel's with two packages' worth of names.
INTEL = {
    f"{_CPU}/cpu0/thermal_throttle/core_throttle_count": "5\n",
    f"{_CPU}/cpu0/thermal_throttle/package_throttle_count": "7\n",
    f"{_CPU}/cpu0/cpufreq/scaling_cur_freq": "4200000\n",
    f"{_CPU}/cpu1/cpufreq/scaling_cur_freq": "3900000\n",
    "sys/class/hwmon/hwmon2/name": "coretemp\n",
    "sys/class/hwmon/hwmon2/temp1_input": "63000\n",
    "sys/class/powercap/intel-rapl/enabled": "1\n",
    "sys/class/powercap/intel-rapl:0/name": "package-0\n",
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850\n",
    "sys/class/powercap/intel-rapl:0/energy_uj": "1000000\n",
    "sys/class/powercap/intel-rapl:0:0/name": "core\n",
    "sys/class/powercap/intel-rapl:0:0/max_energy_range_uj": "262143328850\n",
    "sys/class/powercap/intel-rapl:0:0/energy_uj": "400000\n",
}


def plant(root, files):
    """Write the files below ``root``, and return it."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root
